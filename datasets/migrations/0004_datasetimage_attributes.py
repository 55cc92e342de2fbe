from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('datasets', '0003_preprocessing_steps'),
    ]

    operations = [
        migrations.AddField(
            model_name='datasetimage',
            name='attributes',
            field=models.JSONField(default=dict, help_text='sex, age band and site as a pseudonym, where a file has them'),
        ),
    ]
